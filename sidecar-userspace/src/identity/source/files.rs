//! An identity from PEM files that somebody else renews.

use crate::{
    identity::{
        Bundles, Material, Svid, TrustDomain,
        certificate::CertificateError,
        material::MaterialError,
        pem::{self, Readers},
    },
    model::{Identity, IdentitySource},
};

/// Certificate and key are replaced one after the other: read in between, they do not match, and the change that
/// follows has them read again.
pub(super) fn read(identity: &Identity) -> Result<Material, MaterialError> {
    let IdentitySource::Files {
        certificate,
        private_key,
        trust_bundle,
        owner_only,
    } = &identity.source
    else {
        return Err(MaterialError::Empty);
    };
    let readers = match owner_only {
        true => Readers::Owner,
        false => Readers::Any,
    };
    let svid = Svid::of_files(certificate, private_key, readers)?;
    let mut bundles = Bundles::default();
    let own =
        TrustDomain::parse(svid.id.trust_domain()).map_err(|why| CertificateError::BadId {
            uri: svid.id.to_string(),
            why,
        })?;
    bundles.add(&own, pem::certificates(trust_bundle)?)?;
    super::federate(&mut bundles, &identity.federation)?;
    Ok(Material { svid, bundles })
}
