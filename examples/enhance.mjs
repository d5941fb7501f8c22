// Enhance a recording in Node.js: the same model file, the same runtime, no signal processing around it.
//
//     npm install onnxruntime-node
//     node examples/enhance.mjs me.onnx noisy.wav enhanced.wav        16 kHz, mono, 16 bits
//
// A session does not give the file's metadata to JavaScript, so the delay is a constant: 256 samples in every size.

import { readFileSync, writeFileSync } from "node:fs";
import ort from "onnxruntime-node";

const DELAY = 256, RATE = 16_000, FULL_SCALE = 2 ** 15;

async function enhance(modelPath, samples) {
  const session = await ort.InferenceSession.create(modelPath, { intraOpNumThreads: 1, interOpNumThreads: 1 });
  const shapes = Object.fromEntries(session.inputMetadata.map(input => [input.name, input.shape]));
  const size = shape => shape.reduce((product, length) => product * length, 1);
  const zeros = shape => new ort.Tensor("float32", new Float32Array(size(shape)), shape);
  const hop = shapes.samples[1];
  const names = session.inputNames.filter(name => name.startsWith("state_"));
  let state = Object.fromEntries(names.map(name => [name, zeros(shapes[name])]));
  const nHops = Math.ceil((samples.length + DELAY) / hop);
  const padded = new Float32Array(nHops * hop), enhanced = new Float32Array(nHops * hop);
  padded.set(samples);
  for (let start = 0; start < padded.length; start += hop) {
    const chunk = new ort.Tensor("float32", padded.slice(start, start + hop), [1, hop]);
    const out = await session.run({ samples: chunk, ...state });
    state = Object.fromEntries(names.map(name => [name, out[`next_${name}`]]));
    enhanced.set(out.enhanced.data, start);
  }
  return enhanced.subarray(DELAY, DELAY + samples.length);
}

function readWav(path) {
  const file = readFileSync(path);
  let place = 12, format;
  for (; file.toString("latin1", place, place + 4) !== "data"; place += 8 + file.readUInt32LE(place + 4)) {
    if (file.toString("latin1", place, place + 4) === "fmt ") format = place + 8;
  }
  const channels = file.readUInt16LE(format + 2), rate = file.readUInt32LE(format + 4);
  const fits = rate === RATE && channels === 1 && file.readUInt16LE(format + 14) === 16;
  if (!fits) throw new Error(`${path}: expected 16 kHz, mono, 16 bits`);
  const length = file.readUInt32LE(place + 4) / 2;
  return Float32Array.from({ length }, (_, i) => file.readInt16LE(place + 8 + 2 * i) / FULL_SCALE);
}

function writeWav(path, samples) {
  const file = Buffer.alloc(44 + 2 * samples.length);
  file.write("RIFF"); file.writeUInt32LE(file.length - 8, 4); file.write("WAVEfmt ", 8); file.writeUInt32LE(16, 16);
  file.writeUInt16LE(1, 20); file.writeUInt16LE(1, 22); file.writeUInt32LE(RATE, 24); file.writeUInt32LE(2 * RATE, 28);
  file.writeUInt16LE(2, 32); file.writeUInt16LE(16, 34); file.write("data", 36);
  file.writeUInt32LE(2 * samples.length, 40);
  samples.forEach((sample, i) => {
    file.writeInt16LE(Math.max(-FULL_SCALE, Math.min(FULL_SCALE - 1, Math.round(sample * FULL_SCALE))), 44 + 2 * i);
  });
  writeFileSync(path, file);
}

const [model, source, target] = process.argv.slice(2);
if (!target) throw new Error("node enhance.mjs me.onnx noisy.wav enhanced.wav");
writeWav(target, await enhance(model, readWav(source)));
