//! The values of policies: what a rule may compare with.

use http::HeaderName;
use schemars::{Schema, json_schema};

use super::{error::Expected, scalar::Scalar};
use crate::policy::{attribute::Attribute, check_value};

/// Defines a kind of text that is checked as a value of one attribute.
macro_rules! pattern {
    ($(#[$doc:meta])* $name:ident, $attribute:expr, $expected:literal) => {
        $(#[$doc])*
        pub struct $name;

        impl Scalar for $name {
            type Value = String;

            fn expected() -> Expected {
                $expected.into()
            }

            fn parse(text: &str) -> Result<String, Expected> {
                check_value(&$attribute, text)?;
                Ok(text.to_owned())
            }

            fn schema() -> Schema {
                json_schema!({ "type": "string", "minLength": 1 })
            }
        }
    };
}

pattern!(
    /// A text as it is.
    Pattern,
    Attribute::Method,
    "a text, with a * at one end at most"
);
pattern!(
    /// An identity.
    Principal,
    Attribute::Principal,
    "an identity such as cluster.local/ns/default/sa/web, with a * at one end at most"
);
pattern!(
    /// A host by which a request asks.
    HostPattern,
    Attribute::Host,
    "a host such as shop.example.org or *.example.org, without a port"
);
pattern!(
    /// A path or a template.
    PathPattern,
    Attribute::Path,
    "a path such as /orders, /orders/*, */export or /orders/{*}/items/{**}"
);

/// A text that is judged with the key that it belongs to.
pub struct AnyText;

impl Scalar for AnyText {
    type Value = String;

    fn expected() -> Expected {
        "a text that the key compares with".into()
    }

    fn parse(text: &str) -> Result<String, Expected> {
        Ok(text.to_owned())
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["string", "integer", "boolean"] })
    }
}

/// Any text that is not empty.
pub struct Text;

impl Scalar for Text {
    type Value = String;

    fn expected() -> Expected {
        "a text that is not empty".into()
    }

    fn parse(text: &str) -> Result<String, Expected> {
        let some = Some(text).filter(|text| !text.is_empty());
        some.map(str::to_owned).ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

/// The name of a header.
pub struct HeaderText;

impl Scalar for HeaderText {
    type Value = HeaderName;

    fn expected() -> Expected {
        "the name of a header".into()
    }

    fn parse(text: &str) -> Result<HeaderName, Expected> {
        HeaderName::try_from(text).map_err(|_| Self::expected())
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$" })
    }
}

/// What a condition compares.
pub struct ConditionKey;

impl Scalar for ConditionKey {
    type Value = Attribute;

    fn expected() -> Expected {
        format!("one of {}", Attribute::keys()).into()
    }

    fn parse(text: &str) -> Result<Attribute, Expected> {
        Attribute::of_key(text).ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": r"^[a-z.]+(\[[^\[\]]+\])*$" })
    }
}
