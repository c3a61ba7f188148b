//! The Redis protocol on the wire: frame boundaries, commands, replies, keys.
