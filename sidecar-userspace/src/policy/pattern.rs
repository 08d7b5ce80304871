//! What a text is compared with: exactly, by its beginning or end, by being there; and path templates.

use std::fmt;

use super::normalize::canonical;

/// `abc`, `abc*`, `*abc` or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    /// Any value, as long as there is one.
    Present,
}

/// As [`Text`], or a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    Text(Text),
    Template(Template),
}

/// A path with `{*}`, one segment that is not empty, and at its end `{**}`, any text that may have slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Literal texts, with one segment of any text between each two.
    literals: Vec<Box<str>>,
    /// What follows `{**}`, if there is one.
    rest: Option<Box<str>>,
}

impl Text {
    /// # Errors
    ///
    /// What would have been right.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let inner = text.trim_matches('*');
        if text.is_empty() || inner.contains('*') {
            return Err("a text that is not empty, with a * at one end at most");
        }
        match (text, text.strip_suffix('*'), text.strip_prefix('*')) {
            ("*", ..) => Ok(Self::Present),
            (_, Some(prefix), None) if prefix == inner => Ok(Self::Prefix(inner.into())),
            (_, None, Some(suffix)) if suffix == inner => Ok(Self::Suffix(inner.into())),
            (_, None, None) => Ok(Self::Exact(inner.into())),
            _ => Err("a text with a * at one end at most"),
        }
    }

    /// The pattern with its text changed.
    pub fn map(self, change: impl FnOnce(&str) -> String) -> Self {
        match self {
            Self::Exact(text) => Self::Exact(change(&text).into()),
            Self::Prefix(text) => Self::Prefix(change(&text).into()),
            Self::Suffix(text) => Self::Suffix(change(&text).into()),
            Self::Present => Self::Present,
        }
    }

    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => **text == *value,
            Self::Prefix(text) => value.starts_with(&**text),
            Self::Suffix(text) => value.ends_with(&**text),
            Self::Present => true,
        }
    }
}

impl Path {
    /// Texts are brought into the form in which requests' paths are compared.
    ///
    /// # Errors
    ///
    /// What would have been right.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.contains(['?', '#']) {
            return Err("a path without ? and #: the query is not compared");
        }
        if text.contains("{*") || text.contains("*}") {
            return Template::parse(text).map(Self::Template);
        }
        Ok(Self::Text(
            Text::parse(text)?.map(|text| canonical(text).into_owned()),
        ))
    }

    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }
}

impl Template {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str =
            "a template such as /a/{*}/b/{**}: whole segments, {**} last, no other * or brace";
        let (head, rest) = match text.split_once("{**}") {
            Some((head, rest)) => (head, Some(rest)),
            None => (text, None),
        };
        let literals: Vec<&str> = head.split("{*}").collect();
        let all = literals.iter().chain(rest.iter());
        let plain = all.into_iter().all(|part| !part.contains(['*', '{', '}']));
        // A segment is whole if a slash is at both its ends, or the pattern's end.
        let begins = |text: &str| text.is_empty() || text.starts_with('/');
        let last = literals.len().saturating_sub(1);
        let whole = literals.iter().enumerate().all(|(at, literal)| {
            let before = at == last && rest.is_none();
            let ends = literal.ends_with('/') || before;
            let starts = if at == 0 {
                literal.starts_with('/')
            } else if at == last && rest.is_none() {
                begins(literal)
            } else {
                literal.starts_with('/')
            };
            ends && starts
        });
        if !plain || !whole || !rest.is_none_or(begins) {
            return Err(EXPECTED);
        }
        let canonical = |text: &str| canonical(text).into();
        Ok(Self {
            literals: literals.into_iter().map(canonical).collect(),
            rest: rest.map(canonical),
        })
    }

    /// What every match begins with.
    pub fn prefix(&self) -> &str {
        self.literals.first().map_or("", |literal| literal)
    }

    fn matches(&self, path: &str) -> bool {
        let mut literals = self.literals.iter();
        let first = literals.next().map_or("", |literal| literal);
        let Some(mut left) = path.strip_prefix(first) else {
            return false;
        };
        for literal in literals {
            let segment = left.find('/').unwrap_or(left.len());
            let after = left.get(segment..).unwrap_or_default();
            match after.strip_prefix(&**literal) {
                Some(after) if segment > 0 => left = after,
                _ => return false,
            }
        }
        match &self.rest {
            None => left.is_empty(),
            Some(rest) => left.ends_with(&**rest),
        }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Present => f.write_str("*"),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => text.fmt(f),
            Self::Template(template) => {
                f.write_str(&template.literals.join("{*}"))?;
                match &template.rest {
                    Some(rest) => write!(f, "{{**}}{rest}"),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_one_star_at_one_end() {
        assert_eq!(Text::parse("*"), Ok(Text::Present));
        assert_eq!(Text::parse("a"), Ok(Text::Exact("a".into())));
        assert_eq!(Text::parse("a*"), Ok(Text::Prefix("a".into())));
        assert_eq!(Text::parse("*a"), Ok(Text::Suffix("a".into())));
        for wrong in ["", "**", "*a*", "a**", "**a", "a*b", "a*b*"] {
            assert!(Text::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn templates() {
        for (template, matching, others) in [
            (
                "/a/{*}",
                &["/a/b", "/a/b.c"][..],
                &["/a/", "/a", "/a/b/c", "/a/b/", "/b/b"][..],
            ),
            (
                "/a/{*}/c",
                &["/a/b/c"],
                &["/a//c", "/a/b/d/c", "/a/c", "/a/b/c/"],
            ),
            ("/{*}/{*}", &["/a/b"], &["/a", "/a/", "//b", "/a/b/c"]),
            ("/a/{**}", &["/a/", "/a/b", "/a/b/c"], &["/a", "/b"]),
            (
                "/a/{**}/z",
                &["/a//z", "/a/b/z", "/a/b/c/z"],
                &["/a/z", "/a/b"],
            ),
            (
                "/{*}/x/{**}",
                &["/a/x/", "/a/x/b/c"],
                &["/x/b", "/a/b/x/c", "/a/x"],
            ),
        ] {
            let parsed = Path::parse(template).unwrap();
            assert_eq!(parsed.to_string(), template);
            assert!(
                matching.iter().all(|path| parsed.matches(path)),
                "{template}"
            );
            for path in others {
                assert!(!parsed.matches(path), "{template} {path}");
            }
        }
        for wrong in [
            "/a{*}",
            "/{*}a",
            "/{**}/{*}",
            "/{**}/{**}",
            "{*}",
            "/a/{*}/*",
            "/{***}",
            "/{*}{*}",
            "/{*",
            "/*}",
            "/{a}/{*}",
        ] {
            assert!(Path::parse(wrong).is_err(), "{wrong}");
        }
    }
}
