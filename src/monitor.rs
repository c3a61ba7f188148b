//! EVIDENCE: heartbeats and probes.
