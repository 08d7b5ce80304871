//! Quantities as Kubernetes writes them: `50m`, `1.5`, `128Mi`, `1e3`
//! (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>).

/// In thousandths, rounded up; `None`: it is no quantity, is negative, or is beyond what can be counted.
pub fn thousandths(text: &str) -> Option<u128> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = unsigned.split_at(end.unwrap_or(unsigned.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    // Beyond what anybody means.
    if number.len() > 30 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (multiplier, divisor) = scale(suffix)?;
    let divisor = divisor.checked_mul(power(10, u32::try_from(fraction.len()).ok()?)?)?;
    let scaled = digits.checked_mul(multiplier)?.checked_mul(1000)?;
    Some(scaled.div_ceil(divisor))
}

/// What a suffix multiplies by, and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    if let Some(exponent) = suffix.strip_prefix(['e', 'E'])
        && !exponent.is_empty()
    {
        let exponent: i32 = exponent.parse().ok()?;
        let size = power(10, exponent.unsigned_abs())?;
        return Some(if exponent < 0 { (1, size) } else { (size, 1) });
    }
    let large = |base, exponent| Some((power(base, exponent)?, 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => large(1000, 1),
        "M" => large(1000, 2),
        "G" => large(1000, 3),
        "T" => large(1000, 4),
        "P" => large(1000, 5),
        "E" => large(1000, 6),
        "Ki" => large(1024, 1),
        "Mi" => large(1024, 2),
        "Gi" => large(1024, 3),
        "Ti" => large(1024, 4),
        "Pi" => large(1024, 5),
        "Ei" => large(1024, 6),
        _ => None,
    }
}

fn power(base: u128, exponent: u32) -> Option<u128> {
    base.checked_pow(exponent).filter(|_| exponent <= 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, value) in [
            ("0", 0),
            ("1", 1000),
            ("50m", 50),
            ("0.5", 500),
            (".5", 500),
            ("1.", 1000),
            ("100u", 1),
            ("128Mi", 128 * 1024 * 1024 * 1000),
            ("1.5Gi", 1536 * 1024 * 1024 * 1000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("1E", 1_000_000_000_000_000_000_000),
            ("5e-1", 500),
            ("+1k", 1_000_000),
        ] {
            assert_eq!(thousandths(text), Some(value), "{text}");
        }
        for wrong in [
            "",
            "m",
            ".",
            "-1",
            "1.2.3",
            "1 Mi",
            "1mi",
            "Mi",
            "1e",
            "1e99",
            "0x1",
            "1_0",
            "١",
            "99999999999999999999999999999999",
        ] {
            assert_eq!(thousandths(wrong), None, "{wrong}");
        }
    }
}
