// Reads a SEG and a report with dcmjs, and the SEG against its source images with the adapter of cornerstone3D, which is what
// OHIF loads it with. Writes JSON, an answer for each name of the plan; the label volume goes to a file: one byte a voxel, planes
// in the order of the images named, frames in their own.
//
//   node read_back.mjs PLAN.json ANSWERS.json    {"<name>": {"images": [...], "segmentation": "...", "report": "...", "labels": "..."}}
import { readFileSync, writeFileSync } from 'node:fs';

import { adaptersSEG } from '@cornerstonejs/adapters';
import { cache, metaData } from '@cornerstonejs/core';
import dcmjs from 'dcmjs';

const { Colors, DicomMessage, DicomMetaDictionary } = dcmjs.data;

const bytesOf = (path) => {
  const file = readFileSync(path);
  return file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength);
};
const naturalized = (path) => {
  const file = DicomMessage.readFile(bytesOf(path));
  return { ...DicomMetaDictionary.naturalizeDataset(file.dict), _meta: DicomMetaDictionary.namifyDataset(file.meta) };
};
const list = (value) => (value === undefined ? [] : Array.isArray(value) ? value : [value]);
const first = (value) => list(value)[0];
const code = (sequence) => {
  const item = first(sequence);
  return item && `${item.CodingSchemeDesignator}:${item.CodeValue}`;
};

function segmentsOf(seg) {
  return list(seg.SegmentSequence).map((item) => ({
    number: item.SegmentNumber,
    label: item.SegmentLabel,
    type: code(item.SegmentedPropertyTypeCodeSequence),
    category: code(item.SegmentedPropertyCategoryCodeSequence),
    trackingUid: item.TrackingUID,
    algorithm: item.SegmentAlgorithmName,
    rgb: Colors.dicomlab2RGB(item.RecommendedDisplayCIELabValue).map((part) => Math.round(255 * part)),
  }));
}

function groupsOf(report) {
  const measurements = list(report.ContentSequence).find((item) => code(item.ConceptNameCodeSequence) === 'DCM:126010');
  return list(measurements?.ContentSequence).map((group) => {
    const items = list(group.ContentSequence);
    const named = (concept) => items.filter((item) => code(item.ConceptNameCodeSequence) === concept);
    return {
      concept: code(group.ConceptNameCodeSequence),
      trackingIdentifier: named('DCM:112039')[0]?.TextValue,
      trackingUid: named('DCM:112040')[0]?.UID,
      finding: code(named('DCM:121071')[0]?.ConceptCodeSequence),
      segment: first(named('DCM:121191')[0]?.ReferencedSOPSequence)?.ReferencedSegmentNumber,
      segmentation: first(named('DCM:121191')[0]?.ReferencedSOPSequence)?.ReferencedSOPInstanceUID,
      outlines: items
        .filter((item) => item.ValueType === 'SCOORD')
        .map((item) => ({
          type: item.GraphicType,
          points: list(item.GraphicData).length / 2,
          image: first(first(item.ContentSequence)?.ReferencedSOPSequence)?.ReferencedSOPInstanceUID,
        })),
      numbers: items
        .filter((item) => item.ValueType === 'NUM')
        .map((item) => {
          const measured = first(item.MeasuredValueSequence);
          const derivation = list(item.ContentSequence).find((child) => code(child.ConceptNameCodeSequence) === 'DCM:121401');
          return {
            concept: code(item.ConceptNameCodeSequence),
            value: Number(first(measured.NumericValue)),
            unit: code(measured.MeasurementUnitsCodeSequence),
            derivation: code(derivation?.ConceptCodeSequence) ?? null,
          };
        }),
    };
  });
}

function conclusionsOf(report) {
  const conclusions = list(report.ContentSequence).find((item) => code(item.ConceptNameCodeSequence) === 'UMLS:C0034375');
  return list(conclusions?.ContentSequence)
    .filter((item) => item.ValueType === 'CODE')
    .map((item) => [code(item.ConceptNameCodeSequence), code(item.ConceptCodeSequence)]);
}

// What the viewer's own data source would say of every image; an enhanced instance is an image for each of its frames.
function describe(paths) {
  const described = new Map();
  for (const path of paths) {
    const instance = naturalized(path);
    const shared = first(instance.SharedFunctionalGroupsSequence);
    const frames = instance.PerFrameFunctionalGroupsSequence ? list(instance.PerFrameFunctionalGroupsSequence) : [undefined];
    frames.forEach((frame, index) => {
      const macro = (name) => first(frame?.[name]) ?? first(shared?.[name]) ?? instance;
      const orientation = macro('PlaneOrientationSequence').ImageOrientationPatient.map(Number);
      const position = macro('PlanePositionSequence').ImagePositionPatient.map(Number);
      const [betweenRows, betweenColumns] = macro('PixelMeasuresSequence').PixelSpacing.map(Number);
      described.set(`wadors:/instances/${instance.SOPInstanceUID}/frames/${index + 1}`, {
        instance: { ...instance, ImageOrientationPatient: orientation, ImagePositionPatient: position },
        generalSeriesModule: { seriesInstanceUID: instance.SeriesInstanceUID, modality: instance.Modality },
        generalImageModule: { sopInstanceUID: instance.SOPInstanceUID },
        sopCommonModule: { sopInstanceUID: instance.SOPInstanceUID, sopClassUID: instance.SOPClassUID },
        imagePixelModule: {
          bitsAllocated: 16, bitsStored: 16, highBit: 15, pixelRepresentation: 0, samplesPerPixel: 1,
          photometricInterpretation: 'MONOCHROME2', rows: instance.Rows, columns: instance.Columns,
        },
        imagePlaneModule: {
          frameOfReferenceUID: instance.FrameOfReferenceUID,
          rows: instance.Rows,
          columns: instance.Columns,
          imageOrientationPatient: orientation,
          rowCosines: orientation.slice(0, 3),
          columnCosines: orientation.slice(3),
          imagePositionPatient: position,
          pixelSpacing: [betweenRows, betweenColumns],
          rowPixelSpacing: betweenRows,
          columnPixelSpacing: betweenColumns,
        },
      });
    });
  }
  return described;
}

const described = new Map();
metaData.addProvider((type, imageId) => described.get(imageId)?.[type], 1000);
cache.setMaxCacheSize(1 << 30);

async function labelsOf({ images, segmentation, labels }) {
  const ours = describe(images);
  ours.forEach((description, imageId) => described.set(imageId, description));
  const read = adaptersSEG.Cornerstone3D.Segmentation.createFromDICOMSegBuffer;
  try {
    const made = await read([...ours.keys()], bytesOf(segmentation), { metadataProvider: metaData, segImageId: segmentation });
    const layers = made.labelMapImages.filter((layer) => layer.length);
    writeFileSync(labels, Buffer.concat(layers[0].map((image) => Uint8Array.from(image.voxelManager.getScalarData()))));
    return { images: ours.size, layers: layers.length, overlapping: Boolean(made.overlappingSegments) };
  } catch (error) {
    return { error: error.message };
  }
}

async function readBack(files) {
  const seg = naturalized(files.segmentation);
  const report = naturalized(files.report);
  return {
    segmentation: {
      uid: seg.SOPInstanceUID,
      frames: Number(seg.NumberOfFrames),
      framesDescribed: list(seg.PerFrameFunctionalGroupsSequence).length,
      segments: segmentsOf(seg),
    },
    report: { title: code(report.ConceptNameCodeSequence), groups: groupsOf(report), conclusions: conclusionsOf(report) },
    labels: await labelsOf(files),
  };
}

const answers = {};
for (const [name, files] of Object.entries(JSON.parse(readFileSync(process.argv[2])))) answers[name] = await readBack(files);
writeFileSync(process.argv[3], JSON.stringify(answers));
process.exit(0); // cornerstone keeps workers and timers
