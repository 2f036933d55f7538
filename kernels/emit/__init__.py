"""The emitters: each turns the operation table into one generated file."""
