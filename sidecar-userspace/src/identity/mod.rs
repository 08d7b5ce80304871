//! Who a workload is, and whom it believes: SPIFFE identities, trust bundles, and where both come from.
//!
//! # Layout
//!
//! - [`spiffe_id`], the names; [`certificate`], what a certificate says; `pem`, how files are read
//! - [`material`], an identity with its key and the roots that are trusted
//! - [`ca`], the embedded certification authority
//! - [`source`], where the material comes from, and its renewal

pub mod ca;
pub mod certificate;
pub mod material;
pub mod pem;
pub mod source;
pub mod spiffe_id;

pub use material::{Bundles, Material, Svid};
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
