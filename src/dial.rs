//! One way to open a connection to an endpoint: resolve, connect, TLS.
