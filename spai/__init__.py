"""SPAI: any-resolution AI-generated image detection by spectral learning."""
