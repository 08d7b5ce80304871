//! The public keys of an issuer: a JSON Web Key Set, from the configuration, from a file that may change, or from a URL.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde_json::Value;

use super::remote::KeyUrl;
use crate::fetch::Place;

/// What tokens may be signed with.
pub const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// How often files are read again.
pub const REFRESH: Duration = Duration::from_secs(10);

/// Bytes of a set at most.
pub(super) const SET_BYTES_MAX: usize = 1024 * 1024;

/// The keys of a set that can be used.
#[derive(Clone)]
pub struct KeySet {
    pub keys: Vec<Key>,
}

/// One key, good for one algorithm only: a token cannot choose another one for it.
#[derive(Clone)]
pub struct Key {
    pub id: Option<String>,
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

/// Where keys come from.
#[derive(Debug, Clone)]
pub enum KeySource {
    Inline { text: Arc<str>, keys: Arc<KeySet> },
    File(Arc<KeyFile>),
    Url(Arc<KeyUrl>),
}

/// A file of keys, shared by all configurations that name it, so that a reload keeps what is known.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    keys: ArcSwap<KeySet>,
    /// What the keys were made of.
    text: Mutex<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("not a JSON Web Key Set: {0}")]
    Json(serde_json::Error),
    #[error("no key that RS256, ES256 or EdDSA can use")]
    NoKey,
}

/// The files in use.
static FILES: Mutex<BTreeMap<PathBuf, Weak<KeyFile>>> = Mutex::new(BTreeMap::new());

impl KeySource {
    pub fn inline(text: &str) -> Result<Self, KeyError> {
        Ok(Self::Inline {
            text: text.into(),
            keys: Arc::new(KeySet::parse(text)?),
        })
    }

    /// Reads the file now.
    pub fn file(path: &Path) -> Result<Self, KeyError> {
        let text = read(path)?;
        let keys = KeySet::parse(&text)?;
        let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|_, file| file.strong_count() > 0);
        if let Some(file) = files.get(path).and_then(Weak::upgrade) {
            file.replace(text, keys);
            return Ok(Self::File(file));
        }
        let file = Arc::new(KeyFile {
            path: path.to_owned(),
            keys: ArcSwap::from_pointee(keys),
            text: Mutex::new(text),
        });
        files.insert(path.to_owned(), Arc::downgrade(&file));
        Ok(Self::File(file))
    }

    /// Fetches nothing yet: [`super::remote::follow`] does. What another configuration has fetched from there is kept.
    pub fn url(place: Place) -> Self {
        Self::Url(KeyUrl::at(place))
    }

    /// The keys as they are now; `None`: none could be fetched so far.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        match self {
            Self::Inline { keys, .. } => Some(keys.clone()),
            Self::File(file) => Some(file.keys.load_full()),
            Self::Url(url) => url.keys(),
        }
    }

    /// A token has named a key that is not among them: there may be a new one.
    pub fn ask_early(&self) {
        if let Self::Url(url) = self {
            url.ask_early();
        }
    }
}

/// Two sources are the same if they say the same, whatever keys a file has at the moment.
impl PartialEq for KeySource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Inline { text, .. }, Self::Inline { text: other, .. }) => text == other,
            (Self::File(file), Self::File(other)) => file.path == other.path,
            (Self::Url(url), Self::Url(other)) => url.place() == other.place(),
            _ => false,
        }
    }
}

/// Reads every file in use again. One that is bad changes nothing but the log.
pub fn refresh() {
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let files: Vec<Arc<KeyFile>> = files.values().filter_map(Weak::upgrade).collect();
    for file in files {
        let read = read(&file.path).and_then(|text| {
            let known = *file.text.lock().unwrap_or_else(PoisonError::into_inner) == text;
            let keys = (!known).then(|| KeySet::parse(&text)).transpose()?;
            Ok((text, keys))
        });
        match read {
            Ok((_, None)) => {}
            Ok((text, Some(keys))) => {
                let count = keys.keys.len();
                file.replace(text, keys);
                tracing::info!(path = %file.path.display(), keys = count, "new keys for tokens");
            }
            Err(error) => {
                tracing::warn!(path = %file.path.display(), %error, "the keys for tokens stay as they were");
            }
        }
    }
}

impl KeyFile {
    fn replace(&self, text: String, keys: KeySet) {
        self.keys.store(Arc::new(keys));
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

impl KeySet {
    /// The usable keys of a JSON Web Key Set (RFC 7517); others are left out, as the RFC wants.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let set: Value = serde_json::from_str(text).map_err(KeyError::Json)?;
        let list = set.get("keys").and_then(Value::as_array);
        let list = list.map_or(&[][..], Vec::as_slice).iter();
        let keys: Vec<Key> = list
            .filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok())
            .filter_map(|jwk| Key::of(&jwk))
            .collect();
        if keys.is_empty() {
            return Err(KeyError::NoKey);
        }
        Ok(Self { keys })
    }
}

impl Key {
    fn of(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        let (algorithm, named) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => return None,
        };
        let for_signatures = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature));
        let as_named = common
            .key_algorithm
            .is_none_or(|algorithm| algorithm == named);
        let key = DecodingKey::from_jwk(jwk).ok()?;
        (for_signatures && as_named).then(|| Self {
            id: common.key_id.clone(),
            algorithm,
            key,
        })
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|key| &key.id))
            .finish()
    }
}

fn read(path: &Path) -> Result<String, KeyError> {
    let mut text = String::new();
    let max = SET_BYTES_MAX as u64;
    let read = File::open(path).and_then(|file| file.take(max).read_to_string(&mut text));
    read.map_err(|source| KeyError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(text)
}
