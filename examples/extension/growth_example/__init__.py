"""An operator, a metric and a family for growth, in a package of their own."""
