"""IRModule -> IRModule passes; `canonicalize` strings the first of them together."""
