"""The control loop that moves data between tiers. Nothing is built yet: no module here runs, or pretends to."""
