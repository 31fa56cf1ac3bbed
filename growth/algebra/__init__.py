"""The mathematics of one axis: how its units grow, and which coefficients keep the function (docs/design.md, 2)."""
