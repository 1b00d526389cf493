//! Money, exactly: amounts in whole minor units and the currencies that give them their digits.
//!
//! An [`Amount`] is a count of minor units (cents for USD, yen for JPY, fils for BHD) in a checked
//! `i64`. Decimal text exists at the edges only: [`Amount::parse`] reads it without ever passing through
//! a float, and [`Amount::to_text`] writes it back with exactly the currency's digits.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest amount text that is looked at: `i64::MAX` has 19 digits, so anything longer is refused unread.
const AMOUNT_TEXT_BYTES_MAX: usize = 40;
/// How many significant digits of a decimal a binary floating point number of 64 bits holds for certain.
const FLOAT_DIGITS: i64 = 15;
/// How many digits behind the minor unit are looked at in a number that went through such arithmetic: a difference of two amounts
/// has its noise behind the point, however few digits it has itself.
const NOISE_FREE_DIGITS: i64 = 6;

/// An ISO 4217 currency that has minor units. Its digits come from the `iso_currency` crate's table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency(iso_currency::Currency);

impl Currency {
    /// The US dollar, the default of the HTTP contract: 2 digits.
    pub const USD: Currency = Currency(iso_currency::Currency::USD);

    /// Finds a currency by its three-letter code in capitals.
    ///
    /// # Errors
    /// [`MoneyError::UnknownCurrency`] where ISO 4217 has no such code, or gives it no minor unit (gold, XAU).
    pub fn from_code(code: &str) -> Result<Self, MoneyError> {
        iso_currency::Currency::from_code(code)
            .filter(|currency| currency.exponent().is_some())
            .map(Currency)
            .ok_or_else(|| MoneyError::UnknownCurrency(code.chars().take(16).collect()))
    }

    /// The three-letter code, such as `USD`.
    pub fn code(self) -> &'static str {
        self.0.code()
    }

    /// Digits after the decimal point: 0 for JPY, 2 for USD, 3 for BHD, at most 4.
    pub fn digits(self) -> u32 {
        // `from_code` admits only currencies that have an exponent.
        self.0.exponent().map_or(0, u32::from)
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.code())
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.code())
    }
}

impl TryFrom<String> for Currency {
    type Error = MoneyError;

    fn try_from(code: String) -> Result<Self, MoneyError> {
        Currency::from_code(&code)
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> String {
        currency.code().to_owned()
    }
}

/// Why a text is no amount, or a sum cannot be held. Each message says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MoneyError {
    /// Not a plain decimal number.
    #[error("amount is not a decimal number such as 10 or 10.50")]
    NotANumber,
    /// A minus sign, on zero too.
    #[error("amount must not be negative")]
    Negative,
    /// More decimals than the currency has.
    #[error("amount has more than the {digits} decimals that {currency} has")]
    TooPrecise {
        /// The currency that the amount is in.
        currency: Currency,
        /// How many decimals it has.
        digits: u32,
    },
    /// More than `i64::MAX` minor units.
    #[error("amount is more than the {max} {currency} that can be held")]
    TooLarge {
        /// The currency that the amount is in.
        currency: Currency,
        /// The most that fits, in major units.
        max: String,
    },
    /// No such currency, or one without minor units.
    #[error("currency {0:?} is not an ISO 4217 code with minor units, such as USD, EUR or JPY")]
    UnknownCurrency(String),
}

/// A quantity of money: 0 to `i64::MAX` minor units, never negative.
///
/// The currency is not part of it: a wallet has one currency, and whoever holds the amount knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i64);

impl Amount {
    /// Nothing.
    pub const ZERO: Amount = Amount(0);
    /// The most that can be held: `i64::MAX` minor units.
    pub const MAX: Amount = Amount(i64::MAX);

    /// An amount of that many minor units; `None` if negative.
    pub const fn from_minor(minor_units: i64) -> Option<Self> {
        if minor_units < 0 { None } else { Some(Amount(minor_units)) }
    }

    /// How many minor units.
    pub const fn minor(self) -> i64 {
        self.0
    }

    /// Whether it is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` above [`Amount::MAX`].
    pub fn checked_add(self, other: Amount) -> Option<Amount> {
        self.0.checked_add(other.0).map(Amount)
    }

    /// The difference, or `None` below zero.
    pub fn checked_sub(self, other: Amount) -> Option<Amount> {
        Amount::from_minor(self.0 - other.0)
    }

    /// Reads decimal text in major units: the grammar of a JSON number, so that `10`, `10.5` and `1e3` are
    /// read, `+1`, `01`, `1,5`, ` 1` and digits of other scripts are not. Trailing zeros beyond the
    /// currency's digits are no precision (`10.500` is fine in USD), other decimals are refused.
    ///
    /// # Errors
    /// [`MoneyError`], by what is wrong with the text.
    pub fn parse(text: &str, currency: Currency) -> Result<Self, MoneyError> {
        let decimal = Decimal::scan(text)?;
        if decimal.negative {
            return Err(MoneyError::Negative);
        }
        decimal.to_minor_units(currency)
    }

    /// Reads what a program that counts in binary floating point numbers has written: what [`Amount::parse`] reads, and besides
    /// what is off a whole number of minor units by no more than such arithmetic leaves. 0.1 + 0.2 is written
    /// `0.30000000000000004` there, and is 0.30; `10.005` is no amount in USD.
    ///
    /// What is left out lies behind the 15th significant digit, or behind the 6th after the minor unit. No float is made on the way.
    ///
    /// # Errors
    /// As [`Amount::parse`]; [`MoneyError::TooPrecise`] too where so little of the number is certain that its minor units are not.
    pub fn parse_float(text: &str, currency: Currency) -> Result<Self, MoneyError> {
        match Self::parse(text, currency) {
            Err(too_precise @ MoneyError::TooPrecise { .. }) => {
                Decimal::scan(text)?.without_noise(currency).ok_or(too_precise)
            }
            read => read,
        }
    }

    /// Decimal text with exactly the currency's digits: `10.00` USD, `10` JPY, `10.000` BHD.
    pub fn to_text(self, currency: Currency) -> String {
        let digits = currency.digits();
        if digits == 0 {
            return self.0.to_string();
        }
        let scale = 10_i64.pow(digits);
        format!("{}.{:0width$}", self.0 / scale, self.0 % scale, width = digits as usize)
    }

    /// The shortest exact JSON number: `10`, `10.5`, `0.05`.
    pub fn to_json_number(self, currency: Currency) -> String {
        let text = self.to_text(currency);
        match text.split_once('.') {
            Some(_) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            None => text,
        }
    }
}

/// A JSON number taken apart, its value untouched: digits with the point taken out, times a power of ten.
struct Decimal<'a> {
    negative: bool,
    integer: &'a [u8],
    fraction: &'a [u8],
    exponent: i32,
}

impl<'a> Decimal<'a> {
    fn scan(text: &'a str) -> Result<Self, MoneyError> {
        let is_integer = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
        if text.len() > AMOUNT_TEXT_BYTES_MAX && is_integer {
            // Too long to hold, but a number: the reader below says so in those words.
            let integer = text.as_bytes();
            return Ok(Decimal { negative: false, integer, fraction: b"", exponent: 0 });
        }
        if text.len() > AMOUNT_TEXT_BYTES_MAX {
            return Err(MoneyError::NotANumber);
        }
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest.as_bytes()),
            None => (false, text.as_bytes()),
        };
        let (integer, rest) = leading_digits(rest);
        if integer.is_empty() || (integer.len() > 1 && integer[0] == b'0') {
            return Err(MoneyError::NotANumber);
        }
        let (fraction, rest) = match rest.split_first() {
            Some((b'.', after_point)) => match leading_digits(after_point) {
                ([], _) => return Err(MoneyError::NotANumber),
                found => found,
            },
            _ => (&b""[..], rest),
        };
        let exponent = match rest.split_first() {
            None => 0,
            Some((b'e' | b'E', power)) => read_exponent(power)?,
            Some(_) => return Err(MoneyError::NotANumber),
        };
        Ok(Decimal { negative, integer, fraction, exponent })
    }

    fn to_minor_units(&self, currency: Currency) -> Result<Amount, MoneyError> {
        let digits = currency.digits();
        let too_large = || MoneyError::TooLarge { currency, max: Amount::MAX.to_text(currency) };
        let mantissa = || self.integer.iter().chain(self.fraction);
        if mantissa().all(|digit| *digit == b'0') {
            return Ok(Amount::ZERO);
        }
        // How many of the mantissa's digits are kept; what lies behind them must be zeros.
        let kept = self.integer.len() as i64 + i64::from(self.exponent) + i64::from(digits);
        if mantissa().skip(usize::try_from(kept).unwrap_or(0)).any(|digit| *digit != b'0') {
            return Err(MoneyError::TooPrecise { currency, digits });
        }
        let mut minor: i64 = 0;
        let padded = mantissa().copied().chain(std::iter::repeat(b'0'));
        for digit in padded.take(usize::try_from(kept).unwrap_or(0)) {
            minor = minor
                .checked_mul(10)
                .and_then(|tens| tens.checked_add(i64::from(digit - b'0')))
                .ok_or_else(too_large)?;
        }
        Ok(Amount(minor))
    }

    /// The whole number of minor units that is left when what is no certain digit of a float is rounded away; `None` where there
    /// is none, or it is nothing.
    fn without_noise(&self, currency: Currency) -> Option<Amount> {
        let mantissa = || self.integer.iter().chain(self.fraction).map(|digit| digit - b'0');
        let leading_zeros = mantissa().take_while(|digit| *digit == 0).count();
        let significant = || mantissa().skip(leading_zeros);
        // How many of the significant digits stand for whole minor units, and how many are certain.
        let whole =
            self.integer.len() as i64 + i64::from(self.exponent) - leading_zeros as i64 + i64::from(currency.digits());
        let certain = FLOAT_DIGITS.min(whole + NOISE_FREE_DIGITS);
        // No more than the digits that are looked at behind the minor unit.
        let behind = u32::try_from(certain - whole).ok()?;
        let certain = usize::try_from(certain).ok()?;
        let padded = significant().chain(std::iter::repeat(0)).take(certain);
        let number = padded.fold(0_i64, |sum, digit| sum * 10 + i64::from(digit));
        let rounded = number + i64::from(significant().nth(certain).is_some_and(|digit| digit >= 5));
        let scale = 10_i64.pow(behind);
        (rounded % scale == 0).then_some(Amount(rounded / scale)).filter(|amount| !amount.is_zero())
    }
}

fn leading_digits(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.iter().take_while(|byte| byte.is_ascii_digit()).count())
}

fn read_exponent(power: &[u8]) -> Result<i32, MoneyError> {
    let (negative, power) = match power.split_first() {
        Some((b'+', rest)) => (false, rest),
        Some((b'-', rest)) => (true, rest),
        _ => (false, power),
    };
    if power.is_empty() || !power.iter().all(u8::is_ascii_digit) {
        return Err(MoneyError::NotANumber);
    }
    // An exponent beyond this bound says no more than the bound does: nothing that large or precise is held.
    let magnitude = power.iter().fold(0_i32, |sum, digit| (sum * 10 + i32::from(digit - b'0')).min(10_000));
    Ok(if negative { -magnitude } else { magnitude })
}

/// A sum of money as operators read it: `-1.50 USD`. In minor units where there is no such currency, or where the sum is beyond
/// any single amount.
pub(crate) fn named(minor: impl Into<i128>, code: &str) -> String {
    let minor = minor.into();
    let magnitude = i64::try_from(minor.unsigned_abs()).ok().and_then(Amount::from_minor);
    match (Currency::from_code(code), magnitude) {
        (Ok(currency), Some(magnitude)) => {
            format!("{}{} {code}", if minor < 0 { "-" } else { "" }, magnitude.to_text(currency))
        }
        _ => format!("{minor} minor units of {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn currency(code: &str) -> Currency {
        Currency::from_code(code).expect("a currency of the test")
    }

    fn minor(text: &str, code: &str) -> Result<i64, MoneyError> {
        Amount::parse(text, currency(code)).map(Amount::minor)
    }

    #[test]
    fn reads_exactly_what_is_written() {
        assert_eq!(minor("0.1", "USD"), Ok(10));
        assert_eq!(minor("10", "USD"), Ok(1_000));
        assert_eq!(minor("10.50", "USD"), Ok(1_050));
        assert_eq!(minor("10.500", "USD"), Ok(1_050));
        assert_eq!(minor("0.001", "BHD"), Ok(1));
        assert_eq!(minor("7", "JPY"), Ok(7));
        assert_eq!(minor("1e3", "USD"), Ok(100_000));
        assert_eq!(minor("1.5E+1", "USD"), Ok(1_500));
        assert_eq!(minor("1250e-3", "BHD"), Ok(1_250));
        assert_eq!(minor("0e999", "USD"), Ok(0));
        assert_eq!(minor("92233720368547758.07", "USD"), Ok(i64::MAX));
        assert_eq!(minor("9223372036854775807", "JPY"), Ok(i64::MAX));
    }

    #[test]
    fn refuses_what_is_no_decimal_number() {
        for text in [
            "",
            "abc",
            "NaN",
            "Infinity",
            "1,5",
            "٣",
            "+1",
            "01",
            ".5",
            "5.",
            "1e",
            "1e+",
            " 1",
            "1 ",
            "0x10",
            "--1",
            "1_000",
            "1\0",
            "00000000000000000000000000000000000000001",
            "00000000000000000000000000000000000000000",
        ] {
            assert_eq!(minor(text, "USD"), Err(MoneyError::NotANumber), "{text:?}");
        }
    }

    #[test]
    fn reads_what_floats_have_left_exactly() {
        let float = |text: &str, code: &str| Amount::parse_float(text, currency(code)).map(Amount::minor);
        for (text, minor) in [
            ("0.30000000000000004", 30),
            ("0.7999999999999999", 80),
            ("900.0000000000001", 90_000),
            ("9.99999999999998", 1_000),
            ("0.09999999999999432", 10),
            ("0.00999999999999999", 1),
            ("1234567890.3000002", 123_456_789_030),
            ("3.0000000000000004e-1", 30),
            ("10.500", 1_050),
            ("90071992547409.92", 9_007_199_254_740_992),
            ("0", 0),
        ] {
            assert_eq!(float(text, "USD"), Ok(minor), "{text}");
        }
        assert_eq!(float("0.30000000000000004", "BHD"), Ok(300));
        assert_eq!(float("0.9999999999999999", "JPY"), Ok(1));
        for text in [
            "10.005",
            "0.001",
            "0.30500000000000005",
            "10.00000833333333",
            "10.00000001",
            // Less than the smallest amount, however much less.
            "1e-9",
            "1e-300",
            "4.9e-324",
            // Beyond 15 digits a float does not hold cents.
            "12345678901234.572",
        ] {
            assert!(matches!(float(text, "USD"), Err(MoneyError::TooPrecise { .. })), "{text}");
        }
        for (text, error) in [("-0.30000000000000004", MoneyError::Negative), ("null", MoneyError::NotANumber)] {
            assert_eq!(float(text, "USD"), Err(error), "{text}");
        }
        assert!(matches!(float("1e+21", "USD"), Err(MoneyError::TooLarge { .. })));
    }

    #[test]
    fn refuses_negatives_and_negative_zero() {
        assert_eq!(minor("-1", "USD"), Err(MoneyError::Negative));
        assert_eq!(minor("-0", "USD"), Err(MoneyError::Negative));
    }

    #[test]
    fn refuses_more_decimals_than_the_currency_has() {
        for (text, code) in
            [("0.001", "USD"), ("0.1", "JPY"), ("0.0001", "BHD"), ("1e-3", "USD"), ("1e-9999999999", "USD")]
        {
            assert!(matches!(minor(text, code), Err(MoneyError::TooPrecise { .. })), "{text} {code}");
        }
    }

    #[test]
    fn refuses_what_does_not_fit_and_says_what_would() {
        for (text, code) in [
            ("92233720368547758.08", "USD"),
            ("9223372036854775807", "USD"),
            ("9223372036854775808", "JPY"),
            ("1e999", "USD"),
            ("1e99999999999", "USD"),
            ("1234567890123456789012345678901234567890", "USD"),
            ("12345678901234567890123456789012345678901", "USD"),
        ] {
            assert!(matches!(minor(text, code), Err(MoneyError::TooLarge { .. })), "{text} {code}");
        }
    }

    #[test]
    fn writes_the_currencys_digits() {
        let ten_fifty = Amount(1_050);
        assert_eq!(ten_fifty.to_text(currency("USD")), "10.50");
        assert_eq!(ten_fifty.to_text(currency("JPY")), "1050");
        assert_eq!(ten_fifty.to_text(currency("BHD")), "1.050");
        assert_eq!(ten_fifty.to_json_number(currency("USD")), "10.5");
        assert_eq!(Amount(1_000).to_json_number(currency("USD")), "10");
        assert_eq!(Amount(1_000).to_json_number(currency("JPY")), "1000");
        assert_eq!(Amount(5).to_json_number(currency("USD")), "0.05");
        assert_eq!(Amount::ZERO.to_json_number(currency("USD")), "0");
    }

    #[test]
    fn knows_the_currencies_of_iso_4217_that_have_minor_units() {
        assert_eq!(currency("JPY").digits(), 0);
        assert_eq!(currency("USD").digits(), 2);
        assert_eq!(currency("BHD").digits(), 3);
        for code in ["usd", "XYZ", "", "XAU", "US", "USDD"] {
            assert!(Currency::from_code(code).is_err(), "{code}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_amount_survives_its_own_text(minor_units in 0..=i64::MAX, code in proptest::sample::select(vec!["USD", "JPY", "BHD", "CLF"])) {
            let (amount, currency) = (Amount(minor_units), currency(code));
            proptest::prop_assert_eq!(Amount::parse(&amount.to_text(currency), currency), Ok(amount));
            proptest::prop_assert_eq!(Amount::parse(&amount.to_json_number(currency), currency), Ok(amount));
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "[-+0-9.eE]{0,50}|.{0,20}") {
            let _ = Amount::parse(&text, Currency::USD);
            let _ = Amount::parse_float(&text, Currency::USD);
        }

        #[test]
        #[expect(clippy::float_arithmetic, reason = "the very arithmetic whose traces are to be read")]
        fn whatever_floats_make_of_cents_is_read_as_those_cents(
            large in 0..10_000_000_000_000_i64, other in 0..10_000_000_000_000_i64,
            small in 0..1_000_000_000_i64, less in 0..1_000_000_000_i64,
            many in proptest::collection::vec(1..100_000_i64, 1..100), times in 1..1_000_i64,
        ) {
            let major = |minor: i64| minor as f64 / 100.0;
            // JSON's numbers know no more digits than it takes to tell the float from its neighbours; nor do these.
            let read = |float: f64| Amount::parse_float(&float.to_string(), Currency::USD).map(Amount::minor);
            proptest::prop_assert_eq!(read(major(large) + major(other)), Ok(large + other));
            let (small, less) = (small.max(less), small.min(less));
            let difference = major(small) - major(less);
            proptest::prop_assert_eq!(read(difference), Ok(small - less));
            proptest::prop_assert_eq!(read(major(small) * times as f64), Ok(small * times));
            let sum = many.iter().fold(0.0, |sum, minor| sum + major(*minor));
            proptest::prop_assert_eq!(read(sum), Ok(many.iter().sum::<i64>()));
        }

        #[test]
        fn what_somebody_wrote_with_more_decimals_is_never_rounded(
            minor_units in 0..1_000_000_000_i64, tail in "[0-9]{0,5}[1-9]"
        ) {
            let text = format!("{}{tail}", Amount(minor_units).to_text(Currency::USD));
            let read = Amount::parse_float(&text, Currency::USD);
            let is_refused = matches!(read, Err(MoneyError::TooPrecise { .. }));
            proptest::prop_assert!(is_refused, "{} was read as {:?}", text, read);
        }

        #[test]
        fn what_is_exact_is_read_alike(minor_units in 0..=i64::MAX) {
            let text = Amount(minor_units).to_text(Currency::USD);
            proptest::prop_assert_eq!(Amount::parse_float(&text, Currency::USD), Ok(Amount(minor_units)));
        }
    }
}
