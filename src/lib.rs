//! Pulsegate keeps applications on Active-Active Redis alive.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod decision;
pub mod dial;
pub mod metrics;
pub mod monitor;
pub mod proxy;
pub mod replica;
pub mod resp;
pub mod route;
