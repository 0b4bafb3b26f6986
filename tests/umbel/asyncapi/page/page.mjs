// Renders the AsyncAPI document of argv[2] as one page into the directory of argv[3].
import { existsSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const Generator = createRequire(process.cwd() + "/")("@asyncapi/generator");
const [document, directory] = process.argv.slice(2);
// By its path: one that is not found by its name would be installed now.
const template = resolve("node_modules/@asyncapi/html-template");
// It is published compiled for its publisher's own directories; once compiled here it stays so.
const compiled = resolve(".compiled");
const options = {
  compile: !existsSync(compiled),
  forceWrite: true, // or it asks git about the directory first
  templateParams: { singleFile: true },
};
await new Generator(template, directory, options).generateFromFile(document);
writeFileSync(compiled, "");
