"""An async SDK for the Convertrilo video-encoding API."""
