//! HTTP: health, metrics, status, events and operator verbs.
