//! monoquant: quantizes neural-network weights on any GPU, or none, to the same bytes.

pub mod error;
pub mod observer;
pub mod scheme;
pub mod tensor;
