"""What peers, workers and the user's side must agree on, byte for byte."""
