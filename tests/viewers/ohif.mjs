// Opens pages of OHIF in headless Chromium and says what is on them. Writes JSON: an answer for each page of the plan.
//
//   node ohif.mjs PLAN.json ANSWERS.json
//   {"browser": "/usr/bin/chromium", "address": "http://...", "pages": [{"path": "/viewer?...", "until": "segmentation", "screenshot": "x.png",
//    "planes": {"<SOP Instance UID>#<frame>": [[x, y, z], ...]}}]}
//
// `until`: "list" (a row of the study list), "segmentation" (a label map over an image), "contour" (an annotation of a report).
// `planes`: points in patient coordinates for each image; those of the image that OHIF chose to show are answered in pixels of
// the screenshot, by the viewport's own geometry.
import { readFileSync, writeFileSync } from 'node:fs';

import { chromium } from 'playwright-core';

const PAGE_TIMEOUT_MS = 45_000;
const QUIET_MS = 400;
const REJECTED = 'rejected:';
const MOST = 12; // errors worth telling
const SIZE = { width: 1280, height: 800 };
const TOASTS = '[data-sonner-toaster] { display: none !important; }'; // they lie on the picture; what they say stands in `errors`
const FLAGS = ['--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader'];

const CONDITIONS = {
  list: (text) => document.body.innerText.includes(text),
  segmentation: () => {
    const shown = window.cornerstone?.getEnabledElements()[0]?.viewport;
    const state = window.cornerstoneTools?.segmentation?.state;
    return Boolean(shown?.getCurrentImageId?.() && state?.getSegmentationRepresentations(shown.id)?.length);
  },
  contour: () => document.querySelectorAll('.cornerstone-viewport-element svg polyline, .cornerstone-viewport-element svg path').length > 0,
};

async function visit(context, address, wanted) {
  const seen = { errors: [], failed: [], elsewhere: [] };
  const page = await context.newPage();
  await page.addInitScript((rejected) => {
    localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour'])); // a reader clicks "Skip all", once
    window.addEventListener('unhandledrejection', (event) => console.error(`${rejected} ${event.reason?.stack ?? event.reason}`));
  }, REJECTED);
  page.on('console', (message) => message.type() === 'error' && seen.errors.push(message.text().slice(0, 600)));
  page.on('pageerror', (error) => seen.errors.push(String(error.stack).slice(0, 600)));
  page.on('response', (answer) => answer.status() >= 400 && seen.failed.push(`${answer.status()} ${answer.url()}`));
  page.on('request', (request) => {
    const { origin, protocol } = new URL(request.url());
    if (protocol.startsWith('http') && origin !== address) seen.elsewhere.push(request.url());
  });
  try {
    await page.goto(address + wanted.path, { timeout: PAGE_TIMEOUT_MS });
    const came = page.waitForFunction(CONDITIONS[wanted.until], wanted.text, { timeout: PAGE_TIMEOUT_MS, polling: 100 });
    const failed = page.waitForEvent('console', { predicate: gaveUp, timeout: PAGE_TIMEOUT_MS });
    const reached = await Promise.race([came.then(() => true), failed.then(() => false)]).catch(() => false);
    await Promise.race([came, failed]).catch(() => null);
    await page.addStyleTag({ content: TOASTS });
    await settle(page, wanted.screenshot);
    for (const kind of Object.keys(seen)) seen[kind] = [...new Set(seen[kind])].slice(0, MOST);
    return { ...seen, reached, ...(await page.evaluate(words)), view: await page.evaluate(view, wanted.planes ?? {}) };
  } finally {
    await page.close();
  }
}

// An error that nobody caught ends what OHIF was doing: there is nothing to wait for.
const gaveUp = (message) => message.type() === 'error' && message.text().startsWith(REJECTED);

// Two screenshots one after the other that are equal: nothing is being painted any more.
async function settle(page, path) {
  let before = await page.screenshot({ path });
  for (let attempt = 0; attempt < 20; attempt += 1) {
    await page.waitForTimeout(QUIET_MS);
    const after = await page.screenshot({ path });
    if (after.equals(before)) return;
    before = after;
  }
}

// What a reader can read: the page, and the text boxes of annotations, which are SVG.
function words() {
  const texts = [...document.querySelectorAll('.cornerstone-viewport-element svg tspan')].map((line) => line.textContent.trim());
  return { text: document.body.innerText, texts };
}

function view(planes) {
  const viewport = window.cornerstone?.getEnabledElements()[0]?.viewport;
  const imageId = viewport?.getCurrentImageId?.();
  if (!imageId) return null;
  const [, uid, frame] = imageId.match(/instances\/([0-9.]+)\/frames\/(\d+)/);
  const { left, top, width, height } = viewport.canvas.getBoundingClientRect();
  const image = `${uid}#${frame}`;
  const projected = (planes[image] ?? []).map((point) => viewport.worldToCanvas(point)).map(([x, y]) => [x + left, y + top]);
  return { type: viewport.type, image, projected, canvas: [left, top, width, height] };
}

const plan = JSON.parse(readFileSync(process.argv[2]));
const browser = await chromium.launch({ executablePath: plan.browser, chromiumSandbox: false, args: FLAGS });
try {
  const context = await browser.newContext({ viewport: SIZE });
  const answers = [];
  for (const wanted of plan.pages) answers.push(await visit(context, plan.address, wanted));
  writeFileSync(process.argv[3], JSON.stringify(answers));
} finally {
  await browser.close();
}
