"""Fakes that tests share; each passes the same contract tests as the real thing."""
