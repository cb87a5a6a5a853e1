"""The demo's world: moving shapes, how they are described, and what a picture shows of them."""
