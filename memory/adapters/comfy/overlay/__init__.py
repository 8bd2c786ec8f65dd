"""The server's side of the overlay: what the browser is told, and what it may ask for."""
