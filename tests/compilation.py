"""How tests compile what they compile once and run a few times."""

# Options of `jax.jit`, and the same as XLA_FLAGS for processes: LLVM optimises less, which takes
# half the time or less.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
FAST_FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in FAST.items())
