//! What a kernel is told when it boots, beside what all are.

/// A kernel that gives less than it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    AsItIs,
    /// No program may read the kernel's memory, root's neither.
    Lockdown,
    /// The types of the kernel's structures are not there to be read.
    NoBtf,
}

impl Variant {
    /// A kernel's name, and what is behind it.
    pub fn split(name: &str) -> (&str, Self) {
        for (ending, variant) in [(":lockdown", Self::Lockdown), (":no-btf", Self::NoBtf)] {
            if let Some(kernel) = name.strip_suffix(ending) {
                return (kernel, variant);
            }
        }
        (name, Self::AsItIs)
    }

    /// For the kernel's command line. What is none of the kernel's is for `init.sh`.
    pub fn arguments(self) -> &'static str {
        match self {
            Self::AsItIs => "",
            Self::Lockdown => " lockdown=confidentiality",
            Self::NoBtf => " guest.no-btf",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_behind_the_kernels_name() {
        assert_eq!(Variant::split("6.1"), ("6.1", Variant::AsItIs));
        assert_eq!(Variant::split("6.1:no-btf"), ("6.1", Variant::NoBtf));
        assert_eq!(Variant::split("/a:b"), ("/a:b", Variant::AsItIs));
    }
}
