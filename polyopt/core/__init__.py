"""Define what every algorithm is written in: array operations, rules, trees, errors."""
