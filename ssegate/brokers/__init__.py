"""What orders, stores and spreads updates."""
