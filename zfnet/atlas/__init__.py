"""The atlas: every feature map of every layer of a network, as a site that a browser shows."""
