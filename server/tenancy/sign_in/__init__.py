"""Sign-in of people by an OpenID Connect provider, and what their groups give them."""
