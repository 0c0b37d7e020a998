//! A small builder of ONNX graphs: values are named by strings, constants are shared by name.

use half::f16;
use prost::Message;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type, data_type,
};

/// ONNX operator set; the first with LayerNormalization, so every runtime of the last years reads it.
const OPSET: i64 = 17;
/// ONNX Runtime's own operators.
pub const MICROSOFT: &str = "com.microsoft";

/// An attribute of a node.
#[derive(Clone, Copy, Debug)]
pub enum Attribute {
    /// An integer.
    Int(&'static str, i64),
    /// A float.
    Float(&'static str, f32),
}

/// A graph under construction.
#[derive(Clone, Default)]
pub struct Graph {
    proto: GraphProto,
}

impl Graph {
    /// Declares an input.
    pub fn input(&mut self, name: &str, elem_type: i32, dims: &[&str]) {
        self.proto.input.push(value_info(name, elem_type, dims));
    }

    /// Declares an output: a value that some node makes. A dimension that is a number is fixed.
    pub fn output(&mut self, name: &str, elem_type: i32, dims: &[&str]) {
        self.proto.output.push(value_info(name, elem_type, dims));
    }

    /// Adds a node of ONNX's own operator set with one output, which gets `name`.
    pub fn node(&mut self, op: &str, name: &str, inputs: &[&str], attributes: &[Attribute]) -> String {
        self.push("", op, name, inputs, attributes)
    }

    /// Adds a node of [`MICROSOFT`]'s operator set.
    pub fn fused(&mut self, op: &str, name: &str, inputs: &[&str], attributes: &[Attribute]) -> String {
        self.push(MICROSOFT, op, name, inputs, attributes)
    }

    fn push(
        &mut self,
        domain: &str,
        op: &str,
        name: &str,
        inputs: &[&str],
        attributes: &[Attribute],
    ) -> String {
        // Optional inputs at the end are left out, as the operators' schemas want it; an empty name in
        // between leaves one out too.
        let used = inputs.iter().rposition(|i| !i.is_empty()).map_or(0, |at| at + 1);
        self.proto.node.push(NodeProto {
            input: inputs[..used].iter().map(|s| (*s).to_owned()).collect(),
            output: vec![name.to_owned()],
            name: Some(name.to_owned()),
            op_type: Some(op.to_owned()),
            attribute: attributes.iter().map(attribute).collect(),
            domain: Some(domain.to_owned()),
        });
        name.to_owned()
    }

    /// A float constant, stored as it is.
    pub fn f32(&mut self, name: &str, dims: &[usize], data: &[f32]) -> String {
        self.constant(name, dims, data_type::FLOAT, data.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// A float constant, stored in half precision.
    pub fn f16(&mut self, name: &str, dims: &[usize], data: &[f32]) -> String {
        let bytes = data.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        self.constant(name, dims, data_type::FLOAT16, bytes)
    }

    /// A signed byte constant.
    pub fn i8(&mut self, name: &str, dims: &[usize], data: &[i8]) -> String {
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.constant(name, dims, data_type::INT8, bytes)
    }

    /// An unsigned byte scalar.
    pub fn u8_scalar(&mut self, name: &str, value: u8) -> String {
        self.constant(name, &[], data_type::UINT8, vec![value])
    }

    /// 64-bit integers.
    pub fn i64(&mut self, name: &str, dims: &[usize], data: &[i64]) -> String {
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.constant(name, dims, data_type::INT64, bytes)
    }

    fn constant(&mut self, name: &str, dims: &[usize], data_type: i32, raw: Vec<u8>) -> String {
        if !self.proto.initializer.iter().any(|t| t.name.as_deref() == Some(name)) {
            self.proto.initializer.push(TensorProto {
                dims: dims.iter().map(|d| *d as i64).collect(),
                data_type: Some(data_type),
                name: Some(name.to_owned()),
                raw_data: Some(raw),
            });
        }
        name.to_owned()
    }

    /// The file's bytes; the same graph gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let set = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.to_owned()),
            version: Some(version),
        };
        let mut graph = self.proto.clone();
        graph.name = Some("encoder".into());
        ModelProto {
            ir_version: Some(9),
            producer_name: Some("sentistream".into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            graph: Some(graph),
            opset_import: vec![set("", OPSET), set(MICROSOFT, 1)],
        }
        .encode_to_vec()
    }
}

fn attribute(a: &Attribute) -> AttributeProto {
    let (name, f, i, kind) = match *a {
        Attribute::Int(name, i) => (name, None, Some(i), attribute_type::INT),
        Attribute::Float(name, f) => (name, Some(f), None, attribute_type::FLOAT),
    };
    AttributeProto { name: Some(name.to_owned()), f, i, r#type: Some(kind) }
}

fn value_info(name: &str, elem_type: i32, dims: &[&str]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|d| match d.parse::<i64>() {
            Ok(n) => DimensionProto { dim_value: Some(n), dim_param: None },
            Err(_) => DimensionProto { dim_value: None, dim_param: Some((*d).to_owned()) },
        })
        .collect();
    let tensor = TensorTypeProto { elem_type: Some(elem_type), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_file_reads_back_as_it_was_built() {
        let mut g = Graph::default();
        g.input("x", data_type::FLOAT, &["batch", "3"]);
        let w = g.f16("w", &[3, 1], &[1.0, -2.0, 65504.0]);
        g.f16("w", &[3, 1], &[9.0, 9.0, 9.0]);
        let y = g.node("MatMul", "y", &["x", &w, "", ""], &[Attribute::Int("n", 0)]);
        g.output(&y, data_type::FLOAT, &["batch", "1"]);
        let model = ModelProto::decode(g.to_bytes().as_slice()).unwrap();
        let graph = model.graph.unwrap();
        assert_eq!(graph.initializer.len(), 1, "a constant is stored once");
        assert_eq!(
            graph.initializer[0].raw_data.as_deref().unwrap(),
            [0x00, 0x3C, 0x00, 0xC0, 0xFF, 0x7B],
            "little-endian halves"
        );
        assert_eq!(graph.node[0].input, ["x", "w"], "trailing optional inputs are absent");
        assert_eq!(graph.node[0].attribute[0].i, Some(0));
        assert_eq!(model.opset_import.len(), 2);
    }
}
