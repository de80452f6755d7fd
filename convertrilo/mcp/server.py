"""The MCP server: list the tools, run a called tool, and return its result or error."""

import json
import logging
from collections.abc import Iterable
from typing import Any

from mcp import MCPError
from mcp.server import Server, ServerRequestContext
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    ToolAnnotations,
)
from mcp.types import Tool as ListedTool

from convertrilo._http.redaction import hider, without_secrets
from convertrilo._version import __version__
from convertrilo.errors import ConvertriloError
from convertrilo.mcp import advice
from convertrilo.mcp.calls import CallProgress
from convertrilo.mcp.schemas import check
from convertrilo.mcp.toolbox import Toolbox
from convertrilo.mcp.tools import Tool

logger: logging.Logger = logging.getLogger("convertrilo.mcp")

_INSTRUCTIONS = """\
Encodes videos with Convertrilo. Jobs cost tokens: read get_token_balance first, and make only jobs that were asked for.
create_encode_job makes a job from a URL, wait_for_job waits for it, and its downloadUrl is the result. Repeating a call
is safe: the same arguments are the same job. Credentials are never arguments: name a storageProfile instead.
"""

_MIN_HIDDEN = 16
"""Characters; shorter secrets could be ordinary words in a result, and are not hidden."""


def make_server(
    toolbox: Toolbox, table: Iterable[Tool], *, read_only: bool = False, secrets: Iterable[str] = ()
) -> Server[Any]:
    """Return an MCP server that offers the tools.

    Args:
        toolbox: Runs the tools.
        table: The tools.
        read_only: Whether to leave out the tools that make or cancel jobs.
        secrets: Texts to hide in every result.
    """
    all_tools = {tool.name: tool for tool in table}
    offered = {name: tool for name, tool in all_tools.items() if tool.reads_only or not read_only}
    hidden = [each for each in secrets if len(each) >= _MIN_HIDDEN]

    async def list_tools(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[_listed(tool) for tool in offered.values()])

    async def call_tool(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        tool = offered.get(params.name)
        if tool is None:
            why = " with --read-only" if params.name in all_tools else ""
            raise MCPError(INVALID_PARAMS, f"there is no tool {params.name}{why}; the tools are {', '.join(offered)}")
        reported = -1.0

        async def report(progress: CallProgress) -> None:
            nonlocal reported
            if progress[0] > reported:  # MCP requires progress to increase
                reported = progress[0]
                await context.session.report_progress(*progress)

        arguments = params.arguments or {}
        try:
            check(tool.takes, arguments)
            return _result(await tool.run(toolbox, arguments, report), hidden)
        except ConvertriloError as error:
            logger.info("%s: %s", tool.name, type(error).__name__)
            return _result(advice.error_facts(error), hidden, is_error=True)
        except Exception:
            logger.exception("%s failed unexpectedly", tool.name)
            return _result(advice.UNEXPECTED, hidden, is_error=True)

    return Server(
        "convertrilo",
        version=__version__,
        title="Convertrilo",
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _listed(tool: Tool) -> ListedTool:
    annotations = ToolAnnotations(
        title=tool.title,
        read_only_hint=tool.reads_only,
        destructive_hint=tool.destroys,
        idempotent_hint=True,  # idempotency keys make the other tools idempotent
        open_world_hint=tool.on_the_network,
    )
    return ListedTool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.takes,
        output_schema=tool.gives,
        annotations=annotations,
    )


def _result(value: dict[str, Any], hidden: list[str], *, is_error: bool = False) -> CallToolResult:
    """Return a result, structured and as text, without secrets."""
    shown = json.dumps(value, ensure_ascii=False, indent=2)
    value = without_secrets(value, hider(shown, hidden))
    text = advice.error_text(value) if is_error else json.dumps(value, ensure_ascii=False, indent=2)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=value, is_error=is_error)
