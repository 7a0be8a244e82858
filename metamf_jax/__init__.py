"""Matrix factorization that learns how to factorize."""
