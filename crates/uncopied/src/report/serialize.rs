//! Serialisation of reports with serde. Requires the feature `serde`.

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::{Fallback, Report};
use crate::policy::Mechanism;

/// Serialises the mechanism as its [name](Mechanism::name).
impl Serialize for Mechanism {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Serialises the errno as a number.
impl Serialize for Fallback {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Fallback", 4)?;
        fields.serialize_field("from", &self.from)?;
        fields.serialize_field("to", &self.to)?;
        fields.serialize_field("errno", &self.errno.raw_os_error())?;
        fields.serialize_field("at", &self.at)?;
        fields.end()
    }
}

/// Serialises the total number of bytes, a map with the bytes of each mechanism that moved any, the
/// bytes that the kernel copied, those that were copied on write, whether zero copy was switched
/// off, and the fallbacks.
impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Report", 6)?;
        fields.serialize_field("bytes", &self.bytes())?;
        fields.serialize_field("by_mechanism", &ByMechanism(self))?;
        fields.serialize_field("kernel_copied", &self.kernel_copied)?;
        fields.serialize_field("copied_on_write", &self.copied_on_write)?;
        fields.serialize_field("switched_off", &self.switched_off())?;
        fields.serialize_field("fallbacks", &self.fallbacks)?;
        fields.end()
    }
}

/// The bytes of a report by mechanism, as a map.
struct ByMechanism<'a>(&'a Report);

impl Serialize for ByMechanism<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.by_mechanism())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report_with_fallback;

    #[test]
    fn a_report_as_json() {
        let json = serde_json::to_string(&report_with_fallback()).expect("serialised");
        let expected = concat!(
            r#"{"bytes":65540,"by_mechanism":{"splice":65536,"copy":4},"kernel_copied":0,"#,
            r#""copied_on_write":0,"switched_off":false,"#,
            r#""fallbacks":[{"from":"splice","to":"copy","errno":22,"at":65536}]}"#
        );
        assert_eq!(json, expected);
    }
}
