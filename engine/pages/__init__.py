"""What opens in a browser, without anything from elsewhere."""
