"""What a run shows and keeps while it trains."""
