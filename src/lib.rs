//! monoquant: quantizes neural-network weights on any GPU, or none, to the same bytes.

pub mod backend;
pub mod choice;
pub mod error;
pub mod experts;
pub mod gpu;
pub mod kernels;
pub mod layers;
mod names;
pub mod observer;
pub mod overrides;
pub mod recipe;
pub mod scheme;
pub mod tensor;
