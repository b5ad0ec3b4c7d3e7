"""INT4 storage layouts and matrix products; imports nothing but torch and triton."""
