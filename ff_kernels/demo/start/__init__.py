"""Start values of the demo's networks: what is fitted before anything is trained."""
