//! Configuration: from the text of a file to typed values; all errors are reported in one run, with their locations. This crate
//! knows no subsystem: sections are the types of the crates that use it.
//!
//! ```text
//! tree::parse → interpolate::apply → schema::check → load::load → a Config, or diag::Report
//! ```

pub mod load;
pub mod tree;
pub mod interpolate;
pub mod schema;
pub mod renamed;
pub mod unit;
pub mod diag;
#[macro_use]
pub mod registry;
pub mod needs;
