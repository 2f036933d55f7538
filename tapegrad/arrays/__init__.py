"""What users hold: tracked arrays and numbers, and NumPy's protocols for them."""
