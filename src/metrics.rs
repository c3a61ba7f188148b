//! One registry, one struct per component, enum labels.
