//! The command line: raw flags → what to do; the admin API's client.
