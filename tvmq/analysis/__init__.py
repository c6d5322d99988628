"""Where the error of quantization comes from, site by site, and what would help."""
