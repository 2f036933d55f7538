"""Derivatives of functions: gradients, Jacobians, Hessians, custom rules, and their checks."""
