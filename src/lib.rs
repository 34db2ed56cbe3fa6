//! monoquant: quantizes neural-network weights on any GPU, or none, to the same bytes.

pub mod backend;
pub mod block;
pub mod calibration;
pub mod choice;
pub mod cli;
pub mod coded;
pub mod compare;
pub mod convert;
pub mod copies;
pub mod device;
pub mod error;
pub mod experts;
pub mod fallback;
pub mod formats;
pub mod gpu;
pub mod histograms;
pub mod inspect;
#[cfg(test)]
mod instructions;
pub mod kernels;
pub mod layers;
pub mod mixtures;
mod names;
pub mod observer;
pub mod overrides;
pub mod packing;
pub mod pairs;
pub mod plan;
pub mod profile;
#[cfg(feature = "python")]
mod python;
pub mod quantize;
pub mod reader;
pub mod recipe;
pub mod report;
pub mod reproduce;
pub mod scheme;
pub mod several;
pub mod stream;
pub mod sweeps;
pub mod tensor;
mod threads;
pub mod tiles;
pub mod unpack;
pub mod validate;
pub mod verify;
pub mod writer;

// for what tests share with benches
#[cfg(test)]
extern crate self as monoquant;
