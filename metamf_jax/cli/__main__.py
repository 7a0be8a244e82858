"""``python -m metamf_jax.cli``, where ``metamf`` is not installed."""

import sys

from metamf_jax.cli import main

sys.exit(main())
