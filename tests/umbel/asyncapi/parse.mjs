// Exits with 1 if the official parser has an error or a warning to tell of the document of argv[2].
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { Parser } = createRequire(process.cwd() + "/")("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
const problems = diagnostics.filter(({ severity }) => severity < 2);
for (const { code, path, message } of problems) console.log(code, path.join("."), message);
if (problems.length || !document) process.exit(1);
const operations = document.operations().all();
console.log(JSON.stringify(Object.fromEntries(operations.map((one) => [one.id(), one.action()]))));
