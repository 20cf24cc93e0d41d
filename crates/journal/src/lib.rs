//! Requests that must not be lost: written down before they are acknowledged, kept until they are answered and fetched.
//!
//! Bytes in, bytes out: what a request means is its owner's affair. Two stores stand behind one trait, a file of `SQLite` and
//! Redis Streams; each group of writes that wait together is one commit.
#![warn(missing_docs)]

pub mod counters;
pub mod entry;
pub mod fault;
pub mod journal;
mod planner;
pub mod redis;
pub mod sqlite;
pub mod store;
mod threads;
