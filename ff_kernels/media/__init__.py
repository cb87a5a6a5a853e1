"""Pixels in and out: videos, pictures, contact sheets, clips on disk."""
